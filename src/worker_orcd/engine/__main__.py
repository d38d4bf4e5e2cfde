"""Start the llama.cpp engine."""

from worker_orcd.engine.llama import LlamaModel
from worker_orcd.engine.process import main

if __name__ == "__main__":
    main(LlamaModel)
