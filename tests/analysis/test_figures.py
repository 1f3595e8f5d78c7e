"""How the analyses' figures are saved."""

from emergence_train.analysis.figures import plt, save, styled


def test_panels_lie_where_they_were_put_in_every_file(tmp_path):
    """savefig once moved the panels of a figure without a layout engine between its first file and its second."""
    with styled():
        figure, axis = plt.subplots(layout="none")
        figure.subplots_adjust(0.1, 0.2, 0.8, 0.7)
        save(figure, tmp_path, "one", (".png", ".svg", ".pdf"))
        assert axis.get_position().extents.round(6).tolist() == [0.1, 0.2, 0.8, 0.7]
