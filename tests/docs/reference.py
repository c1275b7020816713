"""The reference of all config fields, docs/config.md, as a page that the code writes.

    python -m tests.docs.reference

writes it again after a change of a field or of its description.
"""

from tests.jobs import golden
from vitvlm.jobs import reference

PAGE = golden.ROOT / "docs" / "config.md"

if __name__ == "__main__":
    PAGE.write_text(reference.page(), encoding="utf-8")
