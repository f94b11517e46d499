"""The commands of the exporter: options in, one line of result out."""
