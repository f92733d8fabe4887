"""Real devices: keys and certificates, a server's folder, and Flower's processes kept going."""
