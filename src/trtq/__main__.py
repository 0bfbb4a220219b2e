"""`python -m trtq`, where the command's own folder is not on the path."""

from trtq.cli import main

if __name__ == "__main__":
    main(prog_name="python -m trtq")
