"""The HTML of a report: the studio's built page in one file, with scripts, style and data, and no network access."""

import base64
import hashlib
import html
import re
from pathlib import Path

from vitrine.errors import RunError

PAGE = Path(__file__).parents[1] / "page"
NO_PAGE = (
    "The page has not been built in this checkout: run «npm ci» and «npm run build» in the folder web, "
    "or install Vitrine with pip, which builds it."
)
SCRIPT = re.compile(r'<script type="module"[^>]*\ssrc="\./assets/([\w.-]+\.js)"></script>')
STYLE = re.compile(r'<link rel="stylesheet"[^>]*\shref="\./assets/([\w.-]+\.css)">')
ICON = re.compile(r'href="\./assets/([\w.-]+\.svg)"')
LATER = re.compile(r"""import\(["'`]\./([\w.-]+\.js)["'`]\)""")  # a script that the page loads when it needs it
TITLE = re.compile(r"<title>.*?</title>", re.DOTALL)


class Shell:
    """The page of a report. Raises RunError if the page has not been built, or cannot be put into one file.

    Args:
        page: the folder of the built page.
    """

    def __init__(self, page: Path = PAGE) -> None:
        if not (page / "index.html").is_file():
            raise RunError(NO_PAGE)
        text = (page / "index.html").read_text(encoding="utf-8")
        own = [_script(page, name) for name in SCRIPT.findall(text)]
        # In a file, nothing can be loaded: such scripts run first, and leave what they have to the page's own.
        later = [_script(page, name) for script in own for name in LATER.findall(script)]
        styles = [(page / "assets" / name).read_text(encoding="utf-8") for name in STYLE.findall(text)]
        text = SCRIPT.sub("", STYLE.sub("", text))
        text = ICON.sub(lambda found: f'href="{_data_address(page / "assets" / found[1])}"', text)
        alone = len(own) == 1 and not any(script.startswith("import") for script in later)
        if not alone or "assets/" in text or "</style" in "".join(styles).lower():
            raise RunError(f"The page in {page} cannot be put into one file. Build it again with «make page».")
        scripts = [*later, *own]
        # Nothing may be loaded, and only these scripts may run.
        policy = (
            f"default-src 'none'; script-src {' '.join(map(_digest, scripts))}; style-src 'unsafe-inline'; img-src data: blob:; "
            "worker-src blob:; media-src blob:; base-uri 'none'; form-action 'none'"
        )
        head = f'<meta http-equiv="Content-Security-Policy" content="{policy}" />'
        text = text.replace("<head>", f"<head>\n    {head}", 1)
        text = text.replace("</head>", f"<style>{''.join(styles)}</style>\n  </head>", 1)
        self._before, self._after = TITLE.split(text, maxsplit=1)
        self._scripts = "".join(f'<script type="module">{script}</script>\n  ' for script in scripts)

    def page(self, title: str, warning: str, data: dict[str, bytes]) -> bytes:
        """The whole file. data: by the id by which the script finds it."""
        blocks = "".join(
            f'<script type="application/octet-stream" id="{name}">{base64.b64encode(content).decode("ascii")}</script>\n  '
            for name, content in data.items()
        )
        end, closing = self._after.rsplit("</body>", 1)
        note = f'<meta name="description" content="{html.escape(warning)}" />'
        text = (
            f"{self._before}<title>{html.escape(title)}</title>\n    {note}{end}{blocks}{self._scripts}</body>{closing}"
        )
        return text.encode("utf-8", "replace")


def _script(page: Path, name: str) -> str:
    """A built script that can be inlined: text that would end the element, or hide its end, is escaped."""
    text = (page / "assets" / name).read_text(encoding="utf-8")
    return re.sub(r"<(?=/script|script)", r"\\x3c", text.replace("<!--", r"\x3c!--"), flags=re.IGNORECASE)


def _digest(script: str) -> str:
    """How a content security policy names a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _data_address(file: Path) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"
