"""Reading runs back: statistics and tables. No torch here."""
