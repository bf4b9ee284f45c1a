"""Rank programs that measure the cluster: smoldiag carries them to every host and starts them there."""
