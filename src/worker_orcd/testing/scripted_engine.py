"""The scripted engine as a process: the real loop, protocol and interrupt byte with a scripted model."""

from worker_orcd.engine.process import main
from worker_orcd.testing.scripted import ScriptedModel

if __name__ == "__main__":
    main(ScriptedModel)
