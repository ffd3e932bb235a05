"""The study as pictures and as one self-contained page; the only package that imports plotly."""
