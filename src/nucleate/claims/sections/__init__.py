"""One module a section of the subject: its experiments (ARMS), its judges, its CLAIMS."""
