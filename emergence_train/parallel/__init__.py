"""How the processes of one training find each other and talk: the process group, rendezvous, collectives."""
