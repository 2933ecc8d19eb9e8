"""The report: one HTML file from finished runs (`html.write_report`)."""
