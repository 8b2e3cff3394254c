"""Resources of every kernel without a GPU: registers, memory and main loops, read from the machine code and judged.

``catalogue`` names the kernels, ``listing`` reads disassemblies, ``flow`` finds loops in them, ``machines`` knows pipes
and limits, ``measure`` counts, ``checks`` judges, ``run`` draws and writes.
"""
