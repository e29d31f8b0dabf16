"""No file of the package imports itself through others, type-only imports included."""

from graphlib import TopologicalSorter

import grimp


def test_no_import_cycle_between_files():
    graph = grimp.build_graph("vlmo", exclude_type_checking_imports=False, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > 100
    TopologicalSorter(imports).prepare()  # names a cycle, if there is one
