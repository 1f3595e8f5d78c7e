"""Training of many small models at once on tables of questions and answers: size x share of data x weight decay x seed.

sweep.py has the file's sections and its runs, tasks.py the tables, mlp.py and transformer.py the models, stacked.py
training, store.py the files, runner.py the processes. The measures are in analysis/grokking, which knows nothing of
training."""
