import gc
import os
import sys

from smoldiag.launch import ahead


def main() -> None:
    ahead.start(sys.argv[1:], os.environ)
    from smoldiag.cli import main as command_line  # a tenth of a second, in which ranks already load torch

    try:
        command_line()
    finally:
        gc.freeze()  # the end of the process looks for garbage no more: a twentieth of a second


if __name__ == "__main__":
    main()
