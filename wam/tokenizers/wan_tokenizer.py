"""`WanTokenizer`: the video autoencoder of Wan 2.1 or 2.2 as a run's tokenizer: pixels to trunk tokens and back.

A latent frame is a grid of cells (8 or 16 pixels wide) with 16 or 48 channels; Wan's trunks take 2 x 2 cells as one
token. Inside a token the order is (row of the cell, column of the cell, channel), the channel fastest:

    token[(2 p + q) * channels + c] = latent[2 y + p, 2 x + q, c]

so a trunk's patch-embedding convolution, kernel [width, channels, 1, 2, 2], is the linear map [4 channels, width]
`kernel[:, :, 0].transpose(2, 3, 1, 0).reshape(4 * channels, width)`. The trunk's output projection in the released files
orders a token in the same way: (frame, row, column, channel).
"""
