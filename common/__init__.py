"""What the services share: wire, streams, settings, the scheduling core and SubNetAct."""

from common import compiled

compiled.use()
