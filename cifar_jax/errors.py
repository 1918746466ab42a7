"""The exceptions that a user is meant to read."""


class UserError(Exception):
    """Something that the user can fix; each line of the text says what is wrong and what to do.

    Attributes:
      exit_code: the program's exit code: 2 for bad input, 1 for a run that had to stop.
    """

    def __init__(self, text: str, exit_code: int = 2):
        super().__init__(text)
        self.exit_code = exit_code

    def _render_traceback_(self) -> list[str]:
        """Returns what a notebook shows: the lines of the text, as the command line does."""
        return [f"error: {line}" for line in str(self).splitlines()]


class DamageError(UserError):
    """The content of a file is wrong, which is not so if the file only cannot be read now."""


class NotFiniteError(UserError):
    """A run had to stop because its loss or its weights are not finite."""
