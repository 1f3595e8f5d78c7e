"""The processes of one training: process group, rendezvous, collectives."""
