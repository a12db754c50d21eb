"""Command line: `python main.py --config=configs/cifar10.py --mode=purify`."""

from pixeldefend import cli

if __name__ == "__main__":
    cli.run()
