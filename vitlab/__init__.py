"""vitlab: a lab report on Vision Transformers that you can run.

config         parameters, validated               parameters  where their values come from
models/        vit, dynamic_vit, linear_vit        registry    name -> model
data/          folders, decode, sources, splits    batches, augment
training/      losses, optim, step                 session, fit, evaluate, progress: what keeps a run alive
runs, files    run directories between stages      machine     device, precision, threads, kernels, limits
texts          names that users gave               typefaces   (analysis/) that have their letters
analysis/      metrics, sentences, complexity      attention, tables, plots, pictures
lab/           plan: which runs a chapter makes    workers, costs, results
report/        notebook: figures and prose         make, render: notebooks to HTML and PDF
"""
