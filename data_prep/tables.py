"""A table as spreadsheets and editors write it: its encoding and its delimiter are found, every line is a row."""

import csv
import io

from clipdec.labels import read_text, same_name

csv.field_size_limit(2**31 - 1)  # a cell holds all labels of a photo
DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}


def read_rows(path, column):
    """([column name], [(line number, [cell])]) of a table; its first line names the columns, one of them `column`.

    The delimiter is that of , ; and tab at which the first line has such a column, whatever its case. Cells are
    stripped, blank lines left out. Raises ValueError that names the line that is wrong.
    """
    # Not pandas: it reads "nan" and 1 as numbers, and takes an open quote as the start of a cell of many lines.
    lines = [(number, line.rstrip("\n")) for number, line in enumerate(io.StringIO(read_text(path), newline=None), 1)]
    lines = [(number, line) for number, line in lines if line.strip()]
    headers = {mark: _header(lines, mark) for mark in DELIMITERS}
    fitting = [mark for mark, names in headers.items() if len(names) > 1 and column in map(same_name, names)]
    if len(fitting) != 1:
        forms = f"{column},labels or {column} and one column a label, with one of , ; and tab between them"
        raise ValueError(f"{path}: the first line must name the columns: {forms}")
    (mark,) = fitting
    header, rows = headers[mark], []
    for number, line in lines[1:]:
        try:
            cells = _cells(line, mark)
        except csv.Error:
            fault = "a quote is opened and not closed, or stands inside a cell"
            remedy = "close it, or write it twice in a cell in quotes"
            raise ValueError(f"{path}, line {number}: {fault}: {remedy}") from None
        if any(cells) and len(cells) != len(header):
            counts = f"{len(cells)} cells where the first line has {len(header)}"
            raise ValueError(f"{path}, line {number}: {counts}; quote a cell that holds {DELIMITERS[mark]}")
        rows += [(number, cells)] if any(cells) else []
    return header, rows


def _header(lines, mark):
    """The cells of the first line, none if it has another delimiter."""
    try:
        return _cells(lines[0][1], mark) if lines else []
    except csv.Error:
        return []


def _cells(line, mark):
    """The cells of one line. Raises csv.Error for quotes that are not closed, or stand in a cell without quotes."""
    (cells,) = csv.reader([line], delimiter=mark, strict=True, skipinitialspace=True)
    quotes = line.count('"')
    if quotes % 2 or quotes < 2 * sum(cell.count('"') for cell in cells):  # a quote of a name is written as two
        raise csv.Error
    return [cell.strip() for cell in cells]
