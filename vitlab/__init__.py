"""vitlab: a lab report on Vision Transformers that you can run.

config, errors parameters, validated               parameters  where their values come from
models/        vit, dynamic_vit, reduce            linear_vit, inline_vit, resnet, heads
models/        registry: name -> model
data/          folders, decode, sources, splits    batches, augment, pictures: one of your own
training/      losses, optim, step                 session, fit, evaluate, progress, display: what keeps a run alive
training/      compiling: whether it pays
runs, files    run directories between stages      identity: what a run is known by
texts          names that users gave               machine     device, precision, threads, kernels, limits
                                                   neighbours  threads that give way to other programs
analysis/      metrics, complexity, timing         attention, tokens, tables, study
analysis/      sentences: what numbers say         sentences_data, sentences_study: of chapter 1
analysis/      sentences_vit, sentences_curves     of chapter 2
analysis/      sentences_tokens, sentences_linear  sentences_costs, sentences_comparison: of chapters 3 to 6
analysis/      plots, study_plots, pictures        theme, chart_parts  figure_data: the numbers of a chart
analysis/      diagrams, drawing: SVG              typefaces   that have the letters of users' names
analysis/      findings: the answers of page one
lab/           plan: which runs a chapter makes    workers, cluster, costs, noise, results; use: a trained model at work
kernel         what a notebook's kernel offers     export, exercises  models as files; answers, checked
report/        notebook: figures and prose         explorer, saving, kernels  make, title, render: notebooks to HTML
report/        page, formulas, fonts: HTML         paper, pages: PDF
"""
