"""Many runs on one machine or a cluster, by Ray: what there is to do, who does it, and how far it is."""
