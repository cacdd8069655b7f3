"""The first cells of a case notebook in this process: for what needs neither a kernel nor the whole report."""

import nbformat

from mlops_core import core
from mlops_core.report import before_section, case_notebook


def run_before(section, case, monkeypatch, **parameters):
    """Run the cells of `case` before its `section` with `parameters`, in the workspace that is set; gives the variables that they leave."""
    monkeypatch.setenv("MLOPS_WORKSPACE", str(core.workspace()))  # so that what the notebook sets is set back
    names = {}
    for cell in before_section(nbformat.read(case_notebook(case), 4), section).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
        if "parameters" in cell.metadata.get("tags", []):
            names |= parameters
    return names
