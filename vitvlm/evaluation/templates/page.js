const data = JSON.parse(document.getElementById("data").textContent);
for (const image of document.querySelectorAll("img[data-place]")) image.src = data.images[image.dataset.place].uri;
