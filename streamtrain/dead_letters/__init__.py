"""Records that were refused, kept with their original bytes and the reason, for whoever corrects or replays them."""
