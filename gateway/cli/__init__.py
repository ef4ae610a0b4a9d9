"""The `mtok` command."""


def main() -> None:
    raise SystemExit(2)
