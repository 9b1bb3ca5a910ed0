"""vitlab: a lab report on Vision Transformers that you can run.

config         parameters, validated            data           datasets, splits, imbalance
augment        batches drawn and augmented      losses         what a step minimises
vit            ViT, block by block              models         name -> model
dynamic_vit    ViT that drops tokens            linear_vit     ViTs with linear attention
train          fit(), the one training loop     optim          optimisers, schedule, precision
fit            the same from a command line     runs, files    run directories between stages
metrics        scores, intervals, tests         sentences      what they say, in words
complexity     parameters, MACs, time, memory   explain        attention, mistakes
lab            which runs a chapter makes       tables         what chapters show of them
plots          one function a figure            display        how a notebook shows all this
report         run the notebooks                render         notebooks to HTML and PDF
"""
