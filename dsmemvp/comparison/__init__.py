"""`dsmemvp compare STUDY`: several methods on one base, with the same data, prompt, order of samples and budget.

- study_file.py, study.py: a study file -> its contenders, trials and runs
- content.py, guards.py: no test sample in training, the same prompts for all contenders
- budget.py: the length of every training
- probe.py, plan.py: how long a study takes, as measured
- running.py: every trial and run, one after another; a killed study resumes
- results.py: what the runs have left, sample by sample
- statistics.py: intervals, paired differences, Holm's correction
- calibration.py: whether answers are right as often as the model is sure
- costs.py: trained parameters, FLOPs of a step and of an answer, bytes kept and sent
- figures.py, report.py: pictures, report.json, report.md, TensorBoard's table of hyperparameters
"""
