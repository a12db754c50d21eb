"""What reproduces papers and released models; nothing imports it."""
