"""From a dataset's name to validated examples to tokens.

Bad rows are found here, with file and line, before a base is loaded. This package imports no torch: the
tokenizer is handed in, and transformers is asked, late, for a chat template's own marks only.
"""
