"""What a careful colleague would check in a data set before training on it. numpy only, plots are made elsewhere."""
