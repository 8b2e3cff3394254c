"""Resources of every kernel without a GPU: registers, memory and main loops, read from the machine code and checked.

``catalogue`` lists and compiles the kernels, ``listing`` reads disassemblies, ``flow`` finds their loops, ``machines``
holds pipes and limits of architectures, ``measure`` counts instructions, ``checks`` compares them with the limits,
``resources`` draws the table and writes the JSON, ``prediction`` estimates the speed on a card.
"""
