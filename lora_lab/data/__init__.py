"""From a dataset's name to validated examples to tokens.

Bad rows are found here, with file and line, before a base is loaded. This package imports neither torch nor
transformers: the tokenizer is handed in.
"""
