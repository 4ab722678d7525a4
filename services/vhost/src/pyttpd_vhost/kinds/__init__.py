"""What a vhost can be: one module per kind, all behind `base.Kind`."""
