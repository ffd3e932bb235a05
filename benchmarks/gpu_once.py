"""One call on a machine with a GPU, as much evidence as fits: python benchmarks/gpu_once.py --output DIR --minutes 8

Every item (gpu_items) is a process of its own, so that neither a crash, nor a hang, nor a broken CUDA context costs
more than one cell. Cells that hang are ended, and items go on behind them; gpu.json and table.txt in DIR are rewritten
after every cell, and a table is printed last. log.txt has what the processes printed, smi.csv the card's load and
clocks. gpu_pack.sh puts together what such a machine lacks; `--toy` goes through all of it in miniature, also on a CPU.
"""

from gpu_items.run import main

if __name__ == "__main__":
    main(__doc__ or "")
