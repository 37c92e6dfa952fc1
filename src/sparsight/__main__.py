"""python -m sparsight, for launchers that take a module: `accelerate launch -m sparsight evaluate ...`."""

from .cli.main import run

if __name__ == "__main__":
    run()
