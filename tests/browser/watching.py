"""What goes wrong in pages without being seen: script errors, console errors, refused content."""

from playwright.sync_api import ConsoleMessage, Page

CALLED_BAD = ("error", "assert")
POLICY = "Content Security Policy"


class Watch:
    """Notes the errors of every page it follows."""

    def __init__(self) -> None:
        """Begin with none."""
        self._noted: list[str] = []
        self._forgiven: list[str] = []

    def follow(self, page: Page) -> None:
        """Note the errors of ``page`` from now on."""
        page.on("pageerror", lambda error: self._noted.append(str(error)))
        page.on("console", self._hear)

    def _hear(self, message: ConsoleMessage) -> None:
        # Chromium reports what a policy refuses as an error, and what it would refuse as other.
        if message.type in CALLED_BAD or POLICY in message.text:
            self._noted.append(f"{message.text} ({message.location.get('url', '')})")

    def forgive(self, text: str) -> None:
        """Let errors pass that hold ``text``: the test causes them."""
        self._forgiven.append(text)

    def unforgiven(self) -> list[str]:
        """Return the errors that no test has forgiven."""
        return [it for it in self._noted if not any(text in it for text in self._forgiven)]
