package guest

import (
	"strconv"
	"strings"
)

// words are all texts of the page in one language.
type words struct {
	What, Online, NoUplink, Tap, Over, Enter, Go, Without, StayButton, Stayed, Browser string
	MeshFree, MeshNone                                                                 string
	Left, BytesLeft, Endless                                                           string // %s is an amount
	Hours, Minutes                                                                     string
	Unknown, Used, Taken, Fast, Stranger, Broken                                       string
}

// wordsFor returns the language that an Accept-Language header (RFC 9110 section 12.5.4) likes best of those we have, else English.
func wordsFor(accept string) (lang string, w words) {
	best := 0.0
	lang = "en"
	for i, part := range strings.Split(accept, ",") {
		if i == 16 {
			break // nobody reads that many
		}
		tag, params, _ := strings.Cut(part, ";")
		tag, _, _ = strings.Cut(strings.ToLower(strings.TrimSpace(tag)), "-")
		q := 1.0
		if v, ok := strings.CutPrefix(strings.TrimSpace(params), "q="); ok {
			f, err := strconv.ParseFloat(v, 64)
			if err != nil || f < 0 || f > 1 {
				continue
			}
			q = f
		}
		switch tag {
		case "en", "es", "de", "fr":
			if q > best {
				lang, best = tag, q
			}
		}
	}
	switch lang {
	case "es":
		return lang, spanish()
	case "de":
		return lang, german()
	case "fr":
		return lang, french()
	}
	return lang, english()
}

func english() words {
	return words{
		What:       "This Wi-Fi belongs to a neighbourhood network. Neighbours build it and share it.",
		Online:     "You are online",
		NoUplink:   "At the moment there is no way to the internet from here. It comes back by itself.",
		Tap:        "Use the internet",
		Over:       "Your time or your data is used up.",
		Enter:      "Voucher code",
		Go:         "Go online",
		Without:    "Without a voucher",
		StayButton: "Stay without internet",
		Stayed:     "You stay connected without internet.",
		Browser:    "Is this a small window that closes by itself? Open this address in your browser:",
		MeshFree:   "Pages and services of the neighbourhood work without a voucher and without internet.",
		MeshNone:   "This page works without a voucher, and nothing else.",
		Left:       "Time left: %s", BytesLeft: "Data left: %s", Endless: "No limit of time or data.", Hours: "h", Minutes: "min",
		Unknown:  "No voucher has this code. Look again for letters that were mistyped.",
		Used:     "This voucher is used up or its time is over. Ask for a new one.",
		Taken:    "This voucher is in use on other devices already. Ask for one of your own.",
		Fast:     "Too many wrong codes. Wait a minute and try again.",
		Stranger: "This page is for devices of this Wi-Fi.",
		Broken:   "Something went wrong on our side. Try again; if it stays so, tell the owner of this Wi-Fi.",
	}
}

func spanish() words {
	return words{
		What:       "Este Wi-Fi es de una red vecinal. La construyen y la comparten los vecinos.",
		Online:     "Ya tienes internet",
		NoUplink:   "Ahora mismo no hay salida a internet desde aquí. Volverá sola.",
		Tap:        "Usar internet",
		Over:       "Se acabó tu tiempo o tus datos.",
		Enter:      "Código del vale",
		Go:         "Conectar a internet",
		Without:    "Sin vale",
		StayButton: "Seguir sin internet",
		Stayed:     "Sigues conectado sin internet.",
		Browser:    "¿Es una ventana pequeña que se cierra sola? Abre esta dirección en tu navegador:",
		MeshFree:   "Las páginas y los servicios del barrio funcionan sin vale y sin internet.",
		MeshNone:   "Sin vale solo funciona esta página.",
		Left:       "Tiempo restante: %s", BytesLeft: "Datos restantes: %s", Endless: "Sin límite de tiempo ni de datos.", Hours: "h", Minutes: "min",
		Unknown:  "Ningún vale tiene este código. Comprueba si hay letras mal escritas.",
		Used:     "Este vale está agotado o ha caducado. Pide uno nuevo.",
		Taken:    "Este vale ya se usa en otros aparatos. Pide uno para ti.",
		Fast:     "Demasiados códigos erróneos. Espera un minuto y prueba otra vez.",
		Stranger: "Esta página es para aparatos conectados a este Wi-Fi.",
		Broken:   "Algo ha fallado de nuestro lado. Prueba otra vez; si sigue igual, avisa a quien lleva este Wi-Fi.",
	}
}

func german() words {
	return words{
		What:       "Dieses WLAN gehört zu einem Nachbarschaftsnetz. Nachbarn bauen es und teilen es.",
		Online:     "Sie sind online",
		NoUplink:   "Im Augenblick führt von hier kein Weg ins Internet. Er kommt von selbst wieder.",
		Tap:        "Internet benutzen",
		Over:       "Ihre Zeit oder Ihre Datenmenge ist aufgebraucht.",
		Enter:      "Gutscheincode",
		Go:         "Online gehen",
		Without:    "Ohne Gutschein",
		StayButton: "Ohne Internet verbunden bleiben",
		Stayed:     "Sie bleiben ohne Internet verbunden.",
		Browser:    "Ist das ein kleines Fenster, das sich von selbst schließt? Öffnen Sie diese Adresse im Browser:",
		MeshFree:   "Seiten und Dienste der Nachbarschaft gehen ohne Gutschein und ohne Internet.",
		MeshNone:   "Ohne Gutschein geht nur diese Seite.",
		Left:       "Verbleibende Zeit: %s", BytesLeft: "Verbleibende Daten: %s", Endless: "Ohne Grenze für Zeit und Daten.", Hours: "Std.", Minutes: "Min.",
		Unknown:  "Kein Gutschein hat diesen Code. Bitte auf vertippte Buchstaben achten.",
		Used:     "Dieser Gutschein ist aufgebraucht oder abgelaufen. Bitte um einen neuen fragen.",
		Taken:    "Dieser Gutschein wird schon auf anderen Geräten benutzt. Bitte um einen eigenen fragen.",
		Fast:     "Zu viele falsche Codes. Bitte eine Minute warten und wieder versuchen.",
		Stranger: "Diese Seite ist für Geräte in diesem WLAN.",
		Broken:   "Auf unserer Seite ging etwas schief. Bitte noch einmal versuchen; bleibt es so, dem Betreiber dieses WLANs sagen.",
	}
}

func french() words {
	return words{
		What:       "Ce Wi-Fi fait partie d'un réseau de voisins. Ils le construisent et le partagent.",
		Online:     "Vous êtes en ligne",
		NoUplink:   "En ce moment, aucun chemin ne mène d'ici à internet. Il reviendra de lui-même.",
		Tap:        "Utiliser internet",
		Over:       "Votre temps ou vos données sont épuisés.",
		Enter:      "Code du bon",
		Go:         "Se connecter",
		Without:    "Sans bon",
		StayButton: "Rester sans internet",
		Stayed:     "Vous restez connecté sans internet.",
		Browser:    "Est-ce une petite fenêtre qui se ferme toute seule ? Ouvrez cette adresse dans votre navigateur :",
		MeshFree:   "Les pages et les services du quartier marchent sans bon et sans internet.",
		MeshNone:   "Sans bon, seule cette page marche.",
		Left:       "Temps restant : %s", BytesLeft: "Données restantes : %s", Endless: "Sans limite de temps ni de données.", Hours: "h", Minutes: "min",
		Unknown:  "Aucun bon n'a ce code. Vérifiez les lettres.",
		Used:     "Ce bon est épuisé ou terminé. Demandez-en un nouveau.",
		Taken:    "Ce bon sert déjà sur d'autres appareils. Demandez-en un pour vous.",
		Fast:     "Trop de codes faux. Attendez une minute et réessayez.",
		Stranger: "Cette page est pour les appareils de ce Wi-Fi.",
		Broken:   "Une erreur s'est produite de notre côté. Réessayez ; si elle persiste, prévenez le responsable de ce Wi-Fi.",
	}
}
