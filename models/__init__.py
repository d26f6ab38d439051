"""The networks: layers, the YAML builder, the detection head."""
