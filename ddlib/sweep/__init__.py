"""A grid of runs, on this machine or on a Ray cluster: `python -m ddlib.sweep grid.yaml [--ray local|ADDRESS]`.

    grid.py      what is to be run, checked before anything starts      work.py     one run: a watched child process, and its record
    store.py     where it is kept: a folder or an fsspec address        pools.py    who does the runs: this machine, or Ray
    report.py    estimates, progress, what became of it                 driver.py   the sweep as a whole: `driver.run`

A sweep can be interrupted and started again any number of times. A finished run is recognised by what decides its result
(method or chapter, preset, settings, evaluation, code, data), an unfinished one goes on from its checkpoint, a failed one is
tried again. Its rows reach the results file once.

Nothing is imported here: a Ray worker needs `work` and `store` only, and starts in half the time.
"""
