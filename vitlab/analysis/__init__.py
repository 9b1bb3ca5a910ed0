"""What runs and models say: scores, sentences, costs, tables, figures."""
