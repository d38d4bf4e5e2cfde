"""Write `expected.json` with `transformers` (`python -m tests.chat_templates.expect`)."""

import importlib
import json
from datetime import datetime
from typing import Any

from tests.chat_templates.conversations import BOS, CONVERSATIONS, EOS, FOLDER, NOW, VARIABLES, digest


class _Fixed(datetime):
    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return NOW


def main() -> None:
    """Render all templates with all conversations."""
    utils: Any = importlib.import_module("transformers.utils.chat_template_utils")
    utils.datetime = _Fixed
    expected: dict[str, list[str]] = {}
    for path in sorted(FOLDER.glob("*.jinja")):
        source = path.read_text("utf-8")
        notes = expected[path.stem] = []
        for conversation in CONVERSATIONS:
            variables = {"bos_token": BOS, "eos_token": EOS, **VARIABLES.get(path.stem, {})}
            try:
                rendered, _ = utils.render_jinja_template(
                    [conversation], chat_template=source, add_generation_prompt=True, **variables
                )
            except Exception as error:  # noqa: BLE001  # A template raises what it likes.
                print(path.stem, type(error).__name__, error)
                notes.append("raises")
            else:
                notes.append(digest(rendered[0]))
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
