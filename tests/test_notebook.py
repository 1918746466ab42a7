"""The notebook runs from its first cell to its last, in an empty folder."""

from pathlib import Path

import pytest

TOUR = Path(__file__).parent.parent / "examples" / "tour.ipynb"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_tour(tmp_path):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(TOUR, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    nbformat.write(notebook, tmp_path / "executed.ipynb")
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [x for x in outputs if "image/png" in x.get("data", {})]
    assert len(pictures) >= 8
    texts = [x["text"] for x in outputs if x.output_type == "stream" and x.name == "stdout"]
    assert any("step/s" in text for text in texts)  # the bar
    (correct,) = [text for text in texts if "correct:" in text]
    assert float(correct.rpartition(" ")[2]) > 0.9
    errors = [x["text"] for x in outputs if x.output_type == "stream" and x.name == "stderr"]
    assert errors == []
