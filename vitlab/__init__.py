"""vitlab: a lab report on Vision Transformers that you can run.

config    parameters, validated            data     datasets, splits, imbalance
augment   batches drawn and augmented      vit, dynamic_vit, linear_vit   the models
models    name -> model                    losses   what a step minimises, class weights
train     fit(): the one training loop     runs     run directories: files between stages
metrics   scores, intervals, paired tests  complexity   parameters, MACs, time, memory
lab       what each chapter trains         plots, display   figures, and how a notebook shows them
report    run the notebooks                render   notebooks -> HTML and PDF
"""
