"""vitlab: a lab report on Vision Transformers that you can run.

config, errors parameters, validated               parameters  where their values come from
models/        vit, reduce, dynamic_vit, linear_vit    registry    name -> model
data/          sources, splits                     batches, augment
training/      losses, optim, step                 session, fit, evaluate, progress: what keeps a run alive
runs, files    run directories between stages      machine     device, precision, threads, kernels
analysis/      metrics, sentences, complexity      attention, tokens, tables, plots, pictures
lab/           plan: which runs a chapter makes    workers, costs, results
report/        notebook: figures and prose         make, render: notebooks to HTML and PDF
"""
