"""Federations across machines: what a site keeps and allows, what a hub runs, and the processes of Flower that both need."""
