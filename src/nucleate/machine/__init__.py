"""What this computer does fast, by self-test; scoped, no global flags."""
