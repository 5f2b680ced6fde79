"""ddlib: the library under the textbook of dataset distillation.

data -> experts -> methods -> distilled set -> evaluate -> rows -> papers, plots, widgets; a selection is a distilled set too.
"""
