from longvision.data.sources.base import Source
from longvision_cli.notes import print_notes


def test_each_note_is_a_line_and_comes_once(capsys):
    source, other = Source(), Source()
    source.notes += ["two\nlines", "one line", "one line"]
    print_notes(source)
    assert capsys.readouterr().out == "note: two lines\nnote: one line\n"
    assert other.notes == []
