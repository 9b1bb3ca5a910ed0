"""vitlab: a lab report on Vision Transformers that you can run.

config, errors parameters, validated               parameters  where their values come from
models/        vit, dynamic_vit, linear_vit        registry    name -> model
data/          sources, splits, pictures           batches, augment
training/      losses, optim, step                 session, fit, evaluate, progress, display: what keeps a run alive
runs, files    run directories between stages      machine     device, precision, threads, kernels
analysis/      metrics, sentences, complexity      attention, tables, plots, pictures
lab/           plan: which runs a chapter makes    workers, costs, results; use: a trained model at work
kernel         what a notebook's kernel offers     export, exercises  models as files; answers, checked
report/        notebook: figures and prose         explorer, saving  make, render: notebooks to HTML and PDF
"""
